/** Does nothing: what everything else is compared with. */
