"""What stands in /proc and in the cgroup hierarchy: settings, socket tables, processes."""
