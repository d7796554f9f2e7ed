"""The HTML report and the model card, from artifacts alone. Imports analysis and below; never torch."""
