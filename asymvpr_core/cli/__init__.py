"""The `asymvpr` command: one file a stage; heavy imports only after parsing."""
