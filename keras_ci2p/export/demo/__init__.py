"""A static web page that shows what a classifier sees in a photo."""
