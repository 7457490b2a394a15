"""Operations on hostile bytes: what runs inside a cell, one module per operation. No rights, no clock, no paths."""
