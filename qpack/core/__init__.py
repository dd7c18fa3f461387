"""What everything rests on: errors, records, the store, hashes, YAML with positions, the console."""
