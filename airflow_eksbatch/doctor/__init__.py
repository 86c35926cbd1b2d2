"""`eksbatch doctor`: whether everything around the service is as it should be, and what to do where it is not."""
