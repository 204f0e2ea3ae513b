"""The configuration: a YAML file in, checked settings out."""
