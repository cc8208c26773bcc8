// Teeth, tongue, lashes, frames of glasses, hats: one colour, some gloss, optional knit or weave.
in vec3 v_position;
in vec3 v_normal;
in vec3 v_rest;
in vec2 v_uv;
in float v_open;
out vec4 color;
uniform vec3 albedo;
uniform vec4 surface;   // gloss, power, pattern (0 none, 1 knit, 2 weave), alpha
void main() {
    vec3 n = normalize(gl_FrontFacing ? v_normal : -v_normal);
    float tone = 1.0;
    if (surface.z > 1.5) tone = 0.90 + 0.2 * noise(vec3(v_uv * 90.0, 1.0));
    else if (surface.z > 0.5) {
        tone = 0.72 + 0.34 * pow(abs(sin(v_uv.x * 100.0)), 0.7) - 0.10 * noise(vec3(v_uv * 60.0, 2.0));
    }
    color = vec4(to_screen(shade(albedo * tone, v_position, n, vec3(0.08), surface.x, surface.y, v_open)), surface.w);
}
