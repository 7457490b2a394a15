"""How a cell is made and what limits it has. Knows no format."""
