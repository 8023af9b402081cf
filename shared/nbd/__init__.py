"""The NBD server core, for the tap and for the exports of a replica."""
