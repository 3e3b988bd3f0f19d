"""Bodies with many images, taken apart while they come: bounded in bytes and in time, never whole in memory or on a disk."""
