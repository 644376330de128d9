/** Imports the module and does nothing with it. */
import "../../mod.ts";
