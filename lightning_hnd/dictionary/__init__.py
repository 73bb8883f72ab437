"""Face Dictionaries: where faces, masks and groups come from."""
