"""Delivers alerts to Alertmanager and webhooks."""
