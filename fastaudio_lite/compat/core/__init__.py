"fastaudio.core"
