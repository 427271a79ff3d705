/**
 * A first look at a command line, before anything else is loaded: which words the room probably has. If they are others,
 * only some work was in vain. For participant.ts alone.
 */
import { splitKey } from "../secure/words.ts";

const option = "--room";

/** Undefined if there are none, or if they are made or asked for later. */
export function likelyWords(
  args: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
): string | undefined {
  if (["send", "share"].includes(args[0] ?? "")) return undefined;
  const at = args.findIndex((one) => one === option || one.startsWith(`${option}=`));
  const given = at < 0 ? undefined : args[at] === option ? args[at + 1] : args[at]!.slice(option.length + 1);
  const words =
    given ?? wordsOf(args.find((one) => one.includes("@"))) ?? (env.ROOM || wordsOf(env.INTRODUCER));
  return words === "new" || words === "-" ? undefined : words && splitKey(words).words;
}

/** Of WORDS@HOST. */
function wordsOf(place = ""): string | undefined {
  return place.includes("@") ? place.slice(0, place.lastIndexOf("@")) : undefined;
}
