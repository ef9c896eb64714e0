"""Records of what a training reads when its steps are traced: made at the call, then compared."""
