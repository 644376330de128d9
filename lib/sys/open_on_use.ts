/** Makes symbols be looked up on first use. A program imports this first. */
import { opening } from "./opening.ts";

opening.onUse = true;
