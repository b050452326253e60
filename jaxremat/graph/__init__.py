"""Problems and schedules as frozen integer arrays, and the exact replay that judges every schedule."""
