"""Load tests with Locust: what users see while the server is changed, killed or attacked. `make load` runs them all."""
