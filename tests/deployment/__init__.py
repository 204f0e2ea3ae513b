"""What is installed on a host: packages, the unit, completions and the manual."""
