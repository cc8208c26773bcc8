"""The real application on this machine alone: started, watched and stopped with everything it started."""
