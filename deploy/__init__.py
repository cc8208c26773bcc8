"""How the service is put on machines; see docs/operations.md."""
