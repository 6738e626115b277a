"fastaudio.augment"
