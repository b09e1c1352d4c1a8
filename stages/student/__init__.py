"""The students: light HOI detectors trained from cached teacher answers. They never load a teacher."""
