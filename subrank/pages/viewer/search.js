"use strict";
// What a search finds: every word is part of the id, the label, a name or a token; a word of signs is a token.
subrank.search = (() => {
  const entry = (id, label, tokens) => {
    const plain = label.replace(/ \(\+\d+\)$/, ""); // how many tokens a label leaves out is no part of it
    const pieces = [...tokens.map((token) => token.trim()), ...plain.split(/[\s",“”]+/)];
    return { text: [id, plain, ...tokens].join("\n").toLowerCase(), tokens: pieces.map((piece) => piece.toLowerCase()) };
  };

  // A test of an entry and the name that was written for it; null where nothing is searched.
  function matcher(query) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return null;
    const parts = words.map((word) => [word, !/[\p{L}\p{N}]/u.test(word)]);
    return ({ text, tokens }, name) =>
      parts.every(([word, signs]) => (signs ? tokens.includes(word) : text.includes(word)) || Boolean(name?.toLowerCase().includes(word)));
  }

  return { entry, matcher };
})();
