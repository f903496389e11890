"""What follows from the theorems and definitions: E1 to E8, one module each, named by the claim's id."""
