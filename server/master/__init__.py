"""What the master does besides gunicorn's own work: it builds generations, gives out slots, keeps the management process."""
