"""How the service is watched: Prometheus' configuration and rules, and Grafana's dashboards."""
