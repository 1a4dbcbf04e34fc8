"""Scenes kept as files, so that figures stay comparable."""
