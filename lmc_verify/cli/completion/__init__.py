"""What a shell offers when the tabulator key is pressed: names and settings, none of them imported."""
