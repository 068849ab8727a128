"""Presets as data (TOML); read by ``gsavatar.config``."""
