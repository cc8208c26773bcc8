in vec2 v_at;
out vec4 color;
uniform vec3 base;      // linear
uniform vec2 kind;      // 0: paper, 1...: places in `scene.PLACES`; seed
vec3 bokeh(vec2 at, float scale, float size, float odds, vec3 a, vec3 b) {
    vec3 sum = vec3(0);
    vec2 cell = floor(at * scale);
    for (int i = -1; i <= 1; ++i)
        for (int j = -1; j <= 1; ++j) {
            vec2 id = cell + vec2(i, j);
            vec3 r = vec3(hash(vec3(id, kind.y * 17.0)), hash(vec3(id, kind.y * 17.0 + 3.0)), hash(vec3(id, kind.y * 17.0 + 7.0)));
            float d = length(at * scale - id - 0.2 - 0.6 * r.xy);
            float disc = 1.0 - smoothstep(size * 0.86, size, d);
            sum += step(r.z, odds) * disc * mix(a, b, r.x) * (0.4 + 0.6 * r.y) * (0.75 + 0.25 * smoothstep(0.5, 1.0, d / size));
        }
    return sum;
}
void main() {
    vec2 at = v_at;
    vec3 c;
    float seed = kind.y * 43.0;
    int place = int(kind.x + 0.5);
    float soft = fbm(vec3(at * 1.2, seed)) - 0.5;
    if (place == 0) {
        vec2 from = vec2(hash(vec3(seed)) - 0.5, hash(vec3(seed + 1.0)) * 0.4);
        c = base * (1.06 - 0.26 * dot(at - from, at - from) * 0.6 + 0.05 * soft);
    } else if (place == 1) {   // forest
        float leaves = fbm(vec3(at * 3.0, seed)), trunks = smoothstep(0.55, 0.75, noise(vec3(at.x * 3.0 + seed, at.y * 0.15, 1.0)));
        c = mix(vec3(0.02, 0.07, 0.015), vec3(0.22, 0.42, 0.08), smoothstep(0.3, 0.75, leaves + 0.12 * at.y));
        c = mix(c, vec3(0.05, 0.032, 0.018), 0.6 * trunks * smoothstep(0.9, -0.2, at.y));
        c += bokeh(at, 4.0, 0.42, 0.4, vec3(0.18, 0.30, 0.04), vec3(0.4, 0.45, 0.15)) * smoothstep(-0.4, 0.8, at.y);
    } else if (place == 2) {   // city at night
        c = mix(vec3(0.012, 0.014, 0.035), vec3(0.03, 0.03, 0.07), at.y * 0.5 + 0.5);
        c += bokeh(at, 3.5, 0.40, 0.55, vec3(0.9, 0.42, 0.10), vec3(0.8, 0.10, 0.12)) * smoothstep(0.9, -0.3, at.y) * 0.8;
        c += bokeh(at + 3.7, 5.0, 0.36, 0.45, vec3(0.15, 0.35, 0.9), vec3(0.9, 0.8, 0.5)) * 0.7;
    } else if (place == 3) {   // beach
        float shore = -0.25 + 0.04 * soft, sea = 0.12;
        c = mix(vec3(0.62, 0.50, 0.33) * (0.9 + 0.3 * soft), vec3(0.05, 0.30, 0.42), smoothstep(shore - 0.05, shore + 0.05, at.y));
        c = mix(c, vec3(0.75), 0.5 * exp(-pow((at.y - shore) / 0.04, 2.0)));
        c = mix(c, mix(vec3(0.55, 0.75, 0.92), vec3(0.16, 0.42, 0.85), at.y), smoothstep(sea - 0.02, sea + 0.02, at.y));
    } else if (place == 4) {   // office
        float pane = smoothstep(0.44, 0.47, abs(fract(at.x * 0.9 + hash(vec3(seed)) ) - 0.5));
        vec3 outside = mix(vec3(0.70, 0.78, 0.86), vec3(0.9, 0.95, 1.0), at.y);
        c = mix(outside, vec3(0.24, 0.23, 0.22), max(pane, smoothstep(-0.28, -0.34, at.y)));
        c = mix(c, vec3(0.20, 0.12, 0.07), smoothstep(-0.55, -0.60, at.y));
        c *= 0.9 + 0.25 * soft;
    } else if (place == 5) {   // brick wall
        vec2 brick = vec2(at.x * 3.2, at.y * 7.0);
        brick.x += 0.5 * mod(floor(brick.y), 2.0);
        vec2 in_brick = fract(brick);
        float joint = smoothstep(0.02, 0.07, in_brick.x) * smoothstep(0.98, 0.93, in_brick.x) * smoothstep(0.05, 0.14, in_brick.y) * smoothstep(0.95, 0.86, in_brick.y);
        float one = hash(vec3(floor(brick), seed));
        c = mix(vec3(0.42, 0.39, 0.36), mix(vec3(0.36, 0.11, 0.065), vec3(0.22, 0.07, 0.045), one), joint) * (0.9 + 0.5 * soft);
    } else {                   // sunset sky
        float h = at.y * 0.5 + 0.5;
        c = mix(vec3(0.95, 0.42, 0.10), vec3(0.80, 0.20, 0.28), smoothstep(0.1, 0.5, h));
        c = mix(c, vec3(0.14, 0.12, 0.36), smoothstep(0.45, 1.0, h));
        c += vec3(0.5, 0.22, 0.08) * smoothstep(0.5, 0.8, fbm(vec3(at.x * 1.5, at.y * 5.0, seed))) * 0.6;
        c += vec3(1.0, 0.7, 0.3) * exp(-6.0 * length(at - vec2(0.9 * (hash(vec3(seed)) * 2.0 - 1.0), -0.35)));
    }
    vec3 ambient_tint = mix(vec3(1.0), (key_color.rgb + sky_color.rgb) / max(dot(key_color.rgb + sky_color.rgb, vec3(0.3333)), 0.01), 0.18);
    color = vec4(to_screen(c * ambient_tint * 1.1), 1.0);
}
