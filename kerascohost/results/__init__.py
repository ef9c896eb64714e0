"""What training leaves behind: histories, progress, plans, and their tables and plots."""
