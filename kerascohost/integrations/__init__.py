"""Tools that people search with, whose trainings run together; each module needs its library."""
