"""Measurements that help to choose a layout: times, memory, group factors, trial data."""
