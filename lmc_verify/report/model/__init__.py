"""What a report says, before anything is drawn or written: records to sections, tables and curves."""
