"""The edge where the answer leaves: each module renders a Report and computes nothing."""
