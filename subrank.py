"""The command `subrank`."""
