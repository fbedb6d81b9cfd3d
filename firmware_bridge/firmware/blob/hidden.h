/* Included before everything in a blob: without it references to data go through a global offset table. */
#pragma GCC visibility push(hidden)
