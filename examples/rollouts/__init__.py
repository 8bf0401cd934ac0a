"""Collaborative reinforcement learning: workers on several peers improve one policy."""
