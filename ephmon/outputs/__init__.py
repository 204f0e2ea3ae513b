"""The edge where the answer leaves: each module renders a Report or sends what was rendered, and computes nothing."""
