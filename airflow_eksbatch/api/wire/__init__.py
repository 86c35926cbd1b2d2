"""What goes over the wire, in words of the model and back: pure, without the service behind it."""
