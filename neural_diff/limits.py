"""Every limit of the patch format, in one place; a reader refuses what is over one."""

FILE_BYTES_MAX = 8 << 30
MANIFEST_BYTES_MAX = 1 << 20
MOVES_MAX = 1 << 13
REGIONS_MAX = 4096
SHARING_MAX = 8  # regions whose elements lie in the same blocks
PARTS_MAX = 4096
SECTIONS_MAX = 4096
CHAIN_PATCHES_MAX = 8
REGION_ELEMENTS_MAX = 1 << 32  # an element's index in a region fits 32 bits
SECTION_ELEMENTS_MAX = 4 << 20  # of a section that gives every element it covers
SECTION_CHANGES_MAX = 1 << 20  # of a section that names the elements it changes
BUCKETS_MAX = 1 << 22
FRACTION_BITS_MAX = 8
CLASSES_MAX = 16  # of old values
PARAMS_MAX = 5
STREAMS_MAX = 4 + 2 * CLASSES_MAX
STREAM_BYTES_MAX = 4 * SECTION_ELEMENTS_MAX
WORKING_BYTES_MAX = 64 << 20  # payload and streams of the sections that are open at the same time
BLOCK_BYTES_MAX = 1 << 16  # stride of a blocked layout, and elements in one of its blocks
NAME_CHARS_MAX = 512
PROVENANCE_ENTRIES_MAX = 64
PROVENANCE_CHARS_MAX = 4096
