/**
 * A first look at a command line, before what reads it is loaded: which words its room probably has. If they are others,
 * only some work was in vain. For participant.ts alone.
 */
const option = "--room";

/** Undefined if there are none, or if they are made or asked for later. */
export function likelyWords(
  args: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
): string | undefined {
  const at = args.findIndex((one) => one === option || one.startsWith(`${option}=`));
  const given = at < 0 ? undefined : args[at] === option ? args[at + 1] : args[at]!.slice(option.length + 1);
  const invitation = args.find((one) => one.includes("@"));
  const words = given ?? wordsOf(invitation) ?? (env.ROOM || wordsOf(env.INTRODUCER));
  return words === "new" || words === "-" ? undefined : words;
}

/** Of WORDS@HOST. */
function wordsOf(place = ""): string | undefined {
  return place.includes("@") ? place.slice(0, place.lastIndexOf("@")) : undefined;
}
