"""What a training reads when its steps are traced: recorded at the call, compared and restored."""
