"""The edge's side of stock Flower: a SuperNode as a child, its tasks done by the installed app."""
