"""gunicorn's hooks: when each process does what. How it is done stands in `server/`."""
