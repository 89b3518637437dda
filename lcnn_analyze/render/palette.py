"""The colours of every picture: Okabe and Ito's set, told apart with every common colour blindness."""

INK = "#1f2933"
MUTED = "#6b7280"
OWN = "#0072b2"
DICTIONARY = "#0072b2"
LOOKUPS = "#e69f00"
PLAIN = "#7d8590"
PUBLISHED = "#d55e00"
