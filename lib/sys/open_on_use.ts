/** Imported first by a program, so that symbols are looked up when they are used. */
import { opening } from "./opening.ts";

opening.onUse = true;
