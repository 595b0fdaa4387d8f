"""What a run leaves behind: records (JSON), predictions (NPZ), files written atomically. No torch in here."""
