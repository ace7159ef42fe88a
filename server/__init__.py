"""warmfork: a gunicorn pre-fork model server in which no request meets a cold model."""

__version__ = "0.1.0"
