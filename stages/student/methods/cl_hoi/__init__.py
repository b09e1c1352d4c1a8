"""The CL-HOI style: no annotated interaction, only what a teacher wrote and answered of whole images."""
